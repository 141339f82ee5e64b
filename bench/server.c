/* What the creations of the bench are sent to: it reads each POST to its end and answers all of them alike.
 *
 *     server [--latency MS] [--certificate FILE --key FILE]
 *
 * It prints its port, on 127.0.0.1, and ends when its standard input does, so that nothing is left behind when
 * the bench dies. One thread serves all connections, and answers one request of each at a time. TLS is there if
 * it was compiled with -DTLS -lssl -lcrypto.
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

/* A connection has the number of its descriptor. */
enum { MOST = 8192, HELD = 8192, BACKLOG = 4096, EVENTS = 256 };

static const char ANSWER[] = "HTTP/1.1 200 OK\r\n"
                             "Content-Type: application/json\r\n"
                             "Content-Length: 109\r\n"
                             "\r\n"
                             "{\"relay_token\": \"credit-relay-sandbox-8218d5f8-6d6d-403d-92f5-13a9afaa4398\", "
                             "\"request_id\": \"HNTDNrA8F1shFEW\"}";
static_assert(sizeof(ANSWER) - 1 == 72 + 109, "the length that the answer states is its body's");

struct connection {
    size_t held;     /* bytes that were read and not understood yet */
    size_t body;     /* bytes of the body that are still to come */
    bool in_body;    /* the head was read to its end */
    bool answering;  /* the next request has to wait */
    uint32_t serial; /* tells it from others that had the same descriptor */
#ifdef TLS
    SSL *tls;
#endif
    char in[HELD + 1]; /* one more, so that there is room to end it as a string */
};

/* Since the latency is the same for all, the answers are due in the order in which the requests came. */
struct due {
    int64_t when;
    uint32_t serial;
    int fd;
};

static struct connection connections[MOST];
static struct due dues[MOST];
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

/* Gives the count of bytes read, 0 if there are none yet, and -1 if no more will come. */
static ssize_t receive(int fd, char *to, size_t room)
{
    ssize_t got;
#ifdef TLS
    SSL *tls = connections[fd].tls;
    if (tls != NULL) {
        got = SSL_read(tls, to, (int)room);
        if (got > 0)
            return got;
        return SSL_get_error(tls, (int)got) == SSL_ERROR_WANT_READ ? 0 : -1;
    }
#endif
    got = recv(fd, to, room, 0);
    if (got > 0)
        return got;
    return got < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

/* An answer that doesn't fit into the socket's empty buffer at once is one that nobody reads. */
static bool answer(int fd)
{
    int length = sizeof(ANSWER) - 1;
    connections[fd].answering = false;
#ifdef TLS
    if (connections[fd].tls != NULL)
        return SSL_write(connections[fd].tls, ANSWER, length) == length;
#endif
    return send(fd, ANSWER, (size_t)length, MSG_NOSIGNAL) == length;
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

static void answer_later(int fd)
{
    struct due due = {.when = now() + latency, .serial = connections[fd].serial, .fd = fd};
    connections[fd].answering = true;
    if (count_of_due == MOST)
        errx(1, "more answers are due than there can be connections");
    dues[(first_due + count_of_due++) % MOST] = due;
    if (count_of_due == 1)
        wake_at(due.when);
}

/* ------------------------------------------------------------------------------------------ requests */

static void forget(struct connection *from, size_t bytes)
{
    from->held -= bytes;
    memmove(from->in, from->in + bytes, from->held);
}

/* Gives whether the head has come; a request that isn't a POST is refused by `understand`. */
static bool read_head(struct connection *from)
{
    char *end = memmem(from->in, from->held, "\r\n\r\n", 4);
    if (end == NULL)
        return false;
    *end = '\0';
    const char *stated = strcasestr(from->in, "\r\nContent-Length:");
    from->body = stated == NULL ? 0 : strtoul(stated + strlen("\r\nContent-Length:"), NULL, 10);
    from->in_body = true;
    forget(from, (size_t)(end + 4 - from->in));
    return true;
}

/* Takes one request off what is held, and gives whether it was there as a whole. */
static bool take_request(struct connection *from)
{
    if (!from->in_body && !read_head(from))
        return false;
    size_t here = from->body < from->held ? from->body : from->held;
    from->body -= here;
    forget(from, here);
    from->in_body = from->body > 0;
    return !from->in_body;
}

/* Answers what is held, and gives whether the connection is still of use. */
static bool understand(int fd)
{
    struct connection *from = &connections[fd];
    while (!from->answering && from->held > 0) {
        if (!from->in_body && strncmp(from->in, "POST ", from->held < 5 ? from->held : 5) != 0)
            return false;
        if (!take_request(from))
            break;
        if (latency > 0)
            answer_later(fd);
        else if (!answer(fd))
            return false;
    }
    return from->held < HELD;
}

static void read_on(int fd)
{
    struct connection *from = &connections[fd];
    ssize_t got;
    /* Until there is nothing more: what OpenSSL holds back, epoll doesn't know of. */
    do {
        got = receive(fd, from->in + from->held, HELD - from->held);
        if (got > 0)
            from->held += (size_t)got;
        if (got < 0 || !understand(fd)) {
            hang_up(fd);
            return;
        }
    } while (got > 0);
}

static void answer_what_is_due(void)
{
    uint64_t ticks;
    if (read(timer, &ticks, sizeof(ticks)) < 0 && errno != EAGAIN)
        err(1, "read");
    int64_t moment = now();
    while (count_of_due > 0 && dues[first_due].when <= moment) {
        struct due due = dues[first_due];
        first_due = (first_due + 1) % MOST;
        count_of_due--;
        if (connections[due.fd].serial == due.serial && !(answer(due.fd) && understand(due.fd)))
            hang_up(due.fd);
    }
    if (count_of_due > 0)
        wake_at(dues[first_due].when);
}

/* ------------------------------------------------------------------------------------------- set-up */

static void welcome(void)
{
    int fd, yes = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= MOST) {
            close(fd);
            continue;
        }
        struct connection *each = &connections[fd];
        each->held = each->body = 0;
        each->in_body = each->answering = false;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
#ifdef TLS
        if (context != NULL) {
            each->tls = SSL_new(context);
            if (each->tls == NULL || SSL_set_fd(each->tls, fd) != 1)
                errx(1, "OpenSSL takes no more connections");
            SSL_set_accept_state(each->tls);
        }
#endif
        watch(fd);
    }
}

static void listen_somewhere(void)
{
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(place);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&place, size) < 0 || listen(listener, BACKLOG) < 0)
        err(1, "listen");
    if (getsockname(listener, (struct sockaddr *)&place, &size) < 0)
        err(1, "getsockname");
    printf("%d\n", ntohs(place.sin_port));
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
    errx(1, "compiled without TLS: %s and %s are of no use", certificate, key);
#endif
}

static void set_up(int count, char **words)
{
    static const struct option OPTIONS[] = {
        {"latency", required_argument, NULL, 'l'},
        {"certificate", required_argument, NULL, 'c'},
        {"key", required_argument, NULL, 'k'},
        {0},
    };
    const char *certificate = NULL, *key = NULL;
    for (int option; (option = getopt_long(count, words, "", OPTIONS, NULL)) != -1;) {
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
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < MOST) {
        files.rlim_cur = files.rlim_max < MOST ? files.rlim_max : MOST;
        setrlimit(RLIMIT_NOFILE, &files);
    }
}

int main(int count, char **words)
{
    set_up(count, words);
    poller = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (poller < 0 || timer < 0)
        err(1, "epoll or timerfd");
    listen_somewhere();
    watch(STDIN_FILENO);
    watch(timer);
    watch(listener);
    for (;;) {
        struct epoll_event events[EVENTS];
        int happened = epoll_wait(poller, events, EVENTS, -1);
        if (happened < 0 && errno != EINTR)
            err(1, "epoll_wait");
        for (int i = 0; i < happened; i++) {
            int fd = events[i].data.fd;
            if (fd == STDIN_FILENO) {
                char ignored[256];
                if (read(fd, ignored, sizeof(ignored)) <= 0)
                    return 0;
            } else if (fd == timer)
                answer_what_is_due();
            else if (fd == listener)
                welcome();
            else
                read_on(fd);
        }
    }
}
