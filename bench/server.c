/* The server of the benchmarks: it reads each POST completely and always sends the same response.
 *
 *     server [--latency MS] [--certificate FILE --key FILE]
 *
 * It prints its port on 127.0.0.1. It exits when its standard input is closed, so that no server outlives a
 * benchmark that crashes. One thread serves all connections, and answers one request of each connection at a
 * time. TLS needs a build with -DTLS -lssl -lcrypto.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <assert.h>
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#ifdef TLS
#include <openssl/ssl.h>
#endif

/* Connections are indexed by their file descriptor. */
enum { MAX_CONNECTIONS = 8192, BUFFER_SIZE = 8192, BACKLOG = 4096, MAX_EVENTS = 256 };

static const char RESPONSE[] = "HTTP/1.1 200 OK\r\n"
                               "Content-Type: application/json\r\n"
                               "Content-Length: 109\r\n"
                               "\r\n"
                               "{\"relay_token\": \"credit-relay-sandbox-8218d5f8-6d6d-403d-92f5-13a9afaa4398\", "
                               "\"request_id\": \"HNTDNrA8F1shFEW\"}";
static_assert(sizeof(RESPONSE) - 1 == 72 + 109, "Content-Length is the length of the body");

struct connection {
    size_t buffered; /* bytes in `in` that are not processed yet */
    size_t body;     /* bytes of the body that are still expected */
    bool in_body;    /* the head has been read completely */
    bool answering;  /* a response is due, so the next request has to wait */
    uint32_t serial; /* distinguishes connections that reuse a descriptor */
#ifdef TLS
    SSL *tls;
#endif
    char in[BUFFER_SIZE + 1]; /* one more byte for a terminating null */
};

/* All responses have the same latency, so they are due in the order in which the requests arrived. */
struct due {
    int64_t when;
    uint32_t serial;
    int fd;
};

static struct connection connections[MAX_CONNECTIONS];
static struct due dues[MAX_CONNECTIONS];
static size_t first_due, count_of_due;
static int64_t latency;
static int poller, timer, listener;
#ifdef TLS
static SSL_CTX *context;
#endif

/* ------------------------------------------------------------------------------------------- bytes */

static void watch(int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0)
        err(1, "epoll_ctl");
}

static void hang_up(int fd)
{
    struct connection *each = &connections[fd];
#ifdef TLS
    if (each->tls != NULL)
        SSL_free(each->tls);
    each->tls = NULL;
#endif
    each->serial++;
    close(fd);
}

/* Returns the number of bytes read, 0 if there are none yet, and -1 at the end of the connection. */
static ssize_t receive(int fd, char *buffer, size_t size)
{
    ssize_t got;
#ifdef TLS
    SSL *tls = connections[fd].tls;
    if (tls != NULL) {
        got = SSL_read(tls, buffer, (int)size);
        if (got > 0)
            return got;
        return SSL_get_error(tls, (int)got) == SSL_ERROR_WANT_READ ? 0 : -1;
    }
#endif
    got = recv(fd, buffer, size, 0);
    if (got > 0)
        return got;
    return got < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

/* The response fits into an empty socket buffer. If it can't be sent, the client has stopped reading. */
static bool send_response(int fd)
{
    int length = sizeof(RESPONSE) - 1;
    connections[fd].answering = false;
#ifdef TLS
    if (connections[fd].tls != NULL)
        return SSL_write(connections[fd].tls, RESPONSE, length) == length;
#endif
    return send(fd, RESPONSE, (size_t)length, MSG_NOSIGNAL) == length;
}

/* ------------------------------------------------------------------------------------------- timing */

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void wake_at(int64_t when)
{
    struct itimerspec once = {.it_value = {.tv_sec = when / 1000000000, .tv_nsec = when % 1000000000}};
    if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &once, NULL) < 0)
        err(1, "timerfd_settime");
}

static void schedule_response(int fd)
{
    struct due due = {.when = now() + latency, .serial = connections[fd].serial, .fd = fd};
    connections[fd].answering = true;
    if (count_of_due == MAX_CONNECTIONS)
        errx(1, "more responses are due than there can be connections");
    dues[(first_due + count_of_due++) % MAX_CONNECTIONS] = due;
    if (count_of_due == 1)
        wake_at(due.when);
}

/* ------------------------------------------------------------------------------------------ requests */

static void discard(struct connection *from, size_t bytes)
{
    from->buffered -= bytes;
    memmove(from->in, from->in + bytes, from->buffered);
}

/* Returns whether the head is complete. `process_requests` rejects a request that is not a POST. */
static bool read_head(struct connection *from)
{
    char *end = memmem(from->in, from->buffered, "\r\n\r\n", 4);
    if (end == NULL)
        return false;
    *end = '\0';
    const char *stated = strcasestr(from->in, "\r\nContent-Length:");
    from->body = stated == NULL ? 0 : strtoul(stated + strlen("\r\nContent-Length:"), NULL, 10);
    from->in_body = true;
    discard(from, (size_t)(end + 4 - from->in));
    return true;
}

/* Removes one request from the buffer, and returns whether it was complete. */
static bool take_request(struct connection *from)
{
    if (!from->in_body && !read_head(from))
        return false;
    size_t available = from->body < from->buffered ? from->body : from->buffered;
    from->body -= available;
    discard(from, available);
    from->in_body = from->body > 0;
    return !from->in_body;
}

/* Responds to the buffered requests, and returns whether the connection is still usable. */
static bool process_requests(int fd)
{
    struct connection *from = &connections[fd];
    while (!from->answering && from->buffered > 0) {
        if (!from->in_body && strncmp(from->in, "POST ", from->buffered < 5 ? from->buffered : 5) != 0)
            return false;
        if (!take_request(from))
            break;
        if (latency > 0)
            schedule_response(fd);
        else if (!send_response(fd))
            return false;
    }
    return from->buffered < BUFFER_SIZE;
}

static void read_requests(int fd)
{
    struct connection *from = &connections[fd];
    ssize_t got;
    /* Read until nothing is left: epoll doesn't report bytes that OpenSSL has already read and buffered. */
    do {
        got = receive(fd, from->in + from->buffered, BUFFER_SIZE - from->buffered);
        if (got > 0)
            from->buffered += (size_t)got;
        if (got < 0 || !process_requests(fd)) {
            hang_up(fd);
            return;
        }
    } while (got > 0);
}

static void send_due_responses(void)
{
    uint64_t ticks;
    if (read(timer, &ticks, sizeof(ticks)) < 0 && errno != EAGAIN)
        err(1, "read");
    int64_t moment = now();
    while (count_of_due > 0 && dues[first_due].when <= moment) {
        struct due due = dues[first_due];
        first_due = (first_due + 1) % MAX_CONNECTIONS;
        count_of_due--;
        if (connections[due.fd].serial == due.serial && !(send_response(due.fd) && process_requests(due.fd)))
            hang_up(due.fd);
    }
    if (count_of_due > 0)
        wake_at(dues[first_due].when);
}

/* ------------------------------------------------------------------------------------------- set-up */

static void accept_connections(void)
{
    int fd, yes = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= MAX_CONNECTIONS) {
            close(fd);
            continue;
        }
        struct connection *each = &connections[fd];
        each->buffered = each->body = 0;
        each->in_body = each->answering = false;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
#ifdef TLS
        if (context != NULL) {
            each->tls = SSL_new(context);
            if (each->tls == NULL || SSL_set_fd(each->tls, fd) != 1)
                errx(1, "OpenSSL can't create another connection");
            SSL_set_accept_state(each->tls);
        }
#endif
        watch(fd);
    }
}

static void listen_on_free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) < 0 ||
        listen(listener, BACKLOG) < 0)
        err(1, "listen");
    if (getsockname(listener, (struct sockaddr *)&address, &size) < 0)
        err(1, "getsockname");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
}

static void use_tls(const char *certificate, const char *key)
{
#ifdef TLS
    context = SSL_CTX_new(TLS_server_method());
    if (context == NULL || SSL_CTX_use_certificate_chain_file(context, certificate) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1)
        errx(1, "OpenSSL can't use %s with %s", certificate, key);
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
    signal(SIGPIPE, SIG_IGN);
#else
    errx(1, "compiled without TLS: can't use %s and %s", certificate, key);
#endif
}

static void parse_options(int count, char **arguments)
{
    static const struct option OPTIONS[] = {
        {"latency", required_argument, NULL, 'l'},
        {"certificate", required_argument, NULL, 'c'},
        {"key", required_argument, NULL, 'k'},
        {0},
    };
    const char *certificate = NULL, *key = NULL;
    for (int option; (option = getopt_long(count, arguments, "", OPTIONS, NULL)) != -1;) {
        if (option == 'l')
            latency = (int64_t)(strtod(optarg, NULL) * 1e6);
        else if (option == 'c')
            certificate = optarg;
        else if (option == 'k')
            key = optarg;
        else
            exit(2);
    }
    if (certificate != NULL && key != NULL)
        use_tls(certificate, key);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < MAX_CONNECTIONS) {
        files.rlim_cur = files.rlim_max < MAX_CONNECTIONS ? files.rlim_max : MAX_CONNECTIONS;
        setrlimit(RLIMIT_NOFILE, &files);
    }
}

int main(int count, char **arguments)
{
    parse_options(count, arguments);
    poller = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (poller < 0 || timer < 0)
        err(1, "epoll or timerfd");
    listen_on_free_port();
    watch(STDIN_FILENO);
    watch(timer);
    watch(listener);
    for (;;) {
        struct epoll_event events[MAX_EVENTS];
        int ready = epoll_wait(poller, events, MAX_EVENTS, -1);
        if (ready < 0 && errno != EINTR)
            err(1, "epoll_wait");
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == STDIN_FILENO) {
                char ignored[256];
                if (read(fd, ignored, sizeof(ignored)) <= 0)
                    return 0;
            } else if (fd == timer)
                send_due_responses();
            else if (fd == listener)
                accept_connections();
            else
                read_requests(fd);
        }
    }
}
