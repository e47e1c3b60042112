from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data.collections import _svg
from sfumato.data.collections._svg import parse_xml, rasterise
from sfumato.errors import UserError

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '


def svg(body: str, size: str = 'viewBox="0 0 40 20"') -> bytes:
    return f"{HEAD}{size}>{body}</svg>".encode()


def drawn(data: bytes, side: int = 40) -> np.ndarray:
    with Image.open(io.BytesIO(rasterise(data, side))) as image:
        return np.asarray(image)


def test_xml_without_entities_is_parsed() -> None:
    root = parse_xml(b'<?xml version="1.0"?><!DOCTYPE a SYSTEM "file:///x.dtd"><a xmlns="u" k="v">t<b/>&amp;</a>')
    assert root.tag == "{u}a"
    assert root.attrib == {"k": "v"}
    assert root.text == "t"
    assert [child.tag for child in root] == ["{u}b"]
    assert root[0].tail == "&"


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))


@pytest.mark.parametrize(
    "declared",
    [
        f'<!ENTITY l0 "lol">{LAUGHS}',
        '<!ENTITY x SYSTEM "file:///etc/hostname">',
        '<!ENTITY x SYSTEM "http://127.0.0.1:9/">',
        '<!ENTITY % x SYSTEM "http://127.0.0.1:9/">',
        '<!ENTITY x "harmless">',
        '<!NOTATION n SYSTEM "n"><!ENTITY x SYSTEM "y" NDATA n>',
    ],
)
def test_declarations_of_entities_are_refused(declared: str) -> None:
    with pytest.raises(ValueError, match="entities"):
        parse_xml(f"<!DOCTYPE a [{declared}]><a>text</a>".encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<a>",
        b"<a></b>",
        b"<a/><a/>",
        b"\xff\xfe\x00",
        b'<?xml version="1.0" encoding="klingon"?><a/>',
        b"<a>&x;</a>",
    ],
)
def test_what_is_no_xml_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="XML"):
        parse_xml(data)


@pytest.mark.parametrize(
    "data",
    [
        b"<a>" * 300 + b"</a>" * 300,
        b"<a>" + b"<b/>" * 100_000 + b"</a>",
        b"<a>" + b" " * 2**22 + b"</a>",
    ],
)
def test_huge_xml_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="too many"):
        parse_xml(data)


def test_a_drawing_keeps_its_form_and_colours() -> None:
    pixels = drawn(svg('<rect width="20" height="20" fill="red"/>'))
    assert pixels.shape == (20, 40, 4)
    assert (pixels[:, :20] == [255, 0, 0, 255]).all()
    assert (pixels[:, 20:, 3] == 0).all()


def test_lengths_in_points_are_understood() -> None:
    assert drawn(svg('<rect width="99" height="99"/>', 'width="40pt" height="10pt"')).shape == (10, 40, 4)


def test_references_inside_are_followed() -> None:
    body = '<defs><g id="g"><rect id="r" width="20" height="20" fill="red"/></g></defs><use xlink:href="#g" x="20"/>'
    assert (drawn(svg(body))[:, 20:] == [255, 0, 0, 255]).all()
    gradient = (
        '<linearGradient id="l"><stop stop-color="blue"/></linearGradient><rect width="40" height="20" fill="url(#l)"/>'
    )
    assert (drawn(svg(gradient)) == [0, 0, 255, 255]).all()


def test_files_of_the_machine_are_not_read(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10), "blue").save(tmp_path / "secret.png")
    for element in ("image", "use", "linearGradient"):
        with pytest.raises(ValueError, match=r"pictures|outside"):
            rasterise(svg(f'<{element} width="40" height="20" xlink:href="{tmp_path}/secret.png"/>'), 40)


@pytest.mark.parametrize(
    "body",
    [
        "<text>hello</text>",
        '<image href="data:image/png;base64,iVBORw0KGgo="/>',
        '<filter id="f"><feImage href="#f"/></filter>',
        '<rect fill="url(http://127.0.0.1:9/x#y)" width="9" height="9"/>',
        "<rect style=\"fill: url( 'other.svg#x' )\" width='9' height='9'/>",
        '<use href="file:///x.svg#y"/>',
        "<style>@import 'x.css';</style>",
        "<style>rect { fill: URL(x.svg#y) }</style>",
        "<script>1</script>",
    ],
)
def test_what_needs_more_than_itself_is_refused(body: str) -> None:
    with pytest.raises(ValueError, match="an SVG"):
        rasterise(svg(body), 40)


def test_style_sheets_without_references_are_fine() -> None:
    body = "<style>rect { fill: #f00 }</style><rect width='40' height='20'/>"
    assert (drawn(svg(body)) == [255, 0, 0, 255]).all()


def test_drawings_that_unfold_are_refused() -> None:
    rows = ['<rect id="x0" width="1" height="1"/>']
    rows += [f'<g id="x{n}">' + f'<use href="#x{n - 1}"/>' * 10 + "</g>" for n in range(1, 12)]
    with pytest.raises(ValueError, match="unfolds"):
        rasterise(svg(f"<defs>{''.join(rows)}</defs><use href='#x11'/>"), 40)
    with pytest.raises(ValueError, match="refers to itself"):
        rasterise(svg('<g id="a"><use href="#a"/></g>'), 40)
    chain = "".join(f'<g id="x{n}"><use href="#x{n + 1}"/></g>' for n in range(5000))
    with pytest.raises(ValueError, match="an SVG"):
        rasterise(svg(chain), 40)


def test_a_drawing_never_grows_beyond_its_frame() -> None:
    assert drawn(svg('<rect width="9" height="9"/>', 'width="1" height="100000"'), 40).shape[0] <= 40


@pytest.mark.parametrize("data", [b"", b"<a/>", b"not xml", svg("", 'width="0" height="5"')])
def test_what_is_no_drawing_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"XML|SVG|size|root"):
        rasterise(data, 40)


def test_without_a_rasteriser_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match=r"sfumato\[offline\]"):
        _svg.rasterise(svg("<g/>"), 40)
