"""Values that nobody expects, for whatever place."""

from hypothesis import strategies as st

# Text that has been a fault somewhere
TEXTS = (
    "",
    " ",
    "\0",
    "\r\n",
    "x\r\nset-cookie: a=1",
    "\ud800",
    "\udcff",
    "\N{RIGHT-TO-LEFT OVERRIDE}",
    "\N{ARABIC-INDIC DIGIT ONE}",
    "\N{FULLWIDTH SOLIDUS}",
    "é",
    "-1",
    "1e309",
    "NaN",
    "9" * 5000,
    "0x10",
    "1_0",
    "%",
    "%00",
    "%ff",
    "%C3%28",
    "%ed%a0%80",
    "%2e%2e%2f",
    "../../etc/passwd",
    "//",
    "/\\",
    "[" * 2000,
    '{"a":' * 500,
    "=" * 300,
    ",;" * 300,
    '"' * 99,
    "W/",
    "*",
    "null",
    "[",
    "[::1",
    "a:b:c",
    "true",
    "' OR 1=1 --",
    "x" * 70_000,
)
texts = st.sampled_from(TEXTS) | st.text(max_size=30)
numbers = st.sampled_from([0, -1, 2**53, 2**63, -(2**63), 10**400, 0.5, -0.0, float("nan"), float("inf")])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def spoilt(sound: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Sound text with something taken out, put in or repeated."""

    def spoil(text: str, at: int, length: int, put_in: str) -> str:
        at %= len(text) + 1
        return text[:at] + put_in + text[at + length :]

    return st.builds(spoil, sound, st.integers(0, 10_000), st.integers(0, 5), texts | st.just(""))
