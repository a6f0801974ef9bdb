"""How the pieces are put together; that they are of a real run, `make evidence` sees to."""

import json
from xml.etree import ElementTree

from tests.evidence.__main__ import _run_log, _svg
from tests.evidence.heading import Heading, read_heading

HEADING = Heading("2026-01-31T12:00:00Z", "0.2.0", "a" * 40, "2 CPUs & <more>", "make evidence")
PICTURE = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (320).to_bytes(4, "big") + (200).to_bytes(4, "big")


def test_picture_is_carried_as_it_is_with_its_heading_below() -> None:
    svg = ElementTree.fromstring(_svg(PICTURE, HEADING))
    assert svg.attrib["viewBox"].startswith("0 0 320 ")
    texts = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == HEADING.lines()


def test_run_log_leaves_out_only_requests_that_were_answered_as_others_before() -> None:
    def line(message: str, **members: object) -> str:
        return json.dumps({"message": message, **members})

    well = [line("GET /api/items 200", status_code=200, request_id=str(number)) for number in range(9)]
    once = [line("POST /api/items 503", status_code=503), line("maintenance done"), line("maintenance done"), "no JSON"]
    shown = _run_log("\n".join([*well, *once]), HEADING).splitlines()
    assert shown[5] == "# lines:   9 of 13; left out: requests answered as 5 before them"
    assert shown[6:] == [*well[:5], *once]


def test_heading_of_a_run_is_read_back_from_each_form() -> None:
    heading = HEADING._replace(machine="2 CPUs")
    for text in (_run_log("", heading), _svg(PICTURE, heading), json.dumps({"made": heading._asdict()}, indent=2)):
        assert read_heading(text) == heading._asdict()
