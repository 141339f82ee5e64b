"""A minimal PDF writer: lines of text on pages (ISO 32000-1)."""

from collections.abc import Iterable, Sequence

_LINES_PER_PAGE = 46  # of 16 points, on A4


def render_pdf(lines: Sequence[str]) -> bytes:
    """Return a PDF file with these lines, on one page or more."""
    pages = [lines[start : start + _LINES_PER_PAGE] for start in range(0, len(lines), _LINES_PER_PAGE)]
    # Objects 1 to 4 are listed below. Each page is an object, and the next one is its content stream.
    numbers = range(5, 5 + 2 * len(pages), 2)
    kids = b" ".join(b"%d 0 R" % number for number in numbers)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Font << /F1 3 0 R >> >>",
    ]
    for number, page in zip(numbers, pages, strict=True):
        objects += [_page_object(number + 1), _content_stream(page)]
    return _pdf_file(objects)


def _page_object(content_number: int) -> bytes:
    attributes = b"/Parent 2 0 R /MediaBox [0 0 595 842] /Resources 4 0 R"
    return b"<< /Type /Page %s /Contents %d 0 R >>" % (attributes, content_number)


def _content_stream(lines: Iterable[str]) -> bytes:
    operators = "".join(f"({_escape(line)}) Tj T*\n" for line in lines)
    stream = f"BT /F1 11 Tf 16 TL 56 786 Td\n{operators}ET".encode("latin-1", "replace")
    return b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream)


def _escape(line: str) -> str:
    return line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def _pdf_file(objects: Iterable[bytes]) -> bytes:
    """Return a PDF file of these objects, with a cross-reference table of their offsets (7.5)."""
    file = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    table = [b"0000000000 65535 f \n"]
    for number, content in enumerate(objects, 1):
        table.append(b"%010d 00000 n \n" % len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(file)
    file += b"xref\n0 %d\n%s" % (len(table), b"".join(table))
    file += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(table), start)
    return bytes(file)
