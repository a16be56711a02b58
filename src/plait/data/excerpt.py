"""What is read of a long text where reading all of it is not worth it."""


def excerpt(text: str, stretch: int) -> str:
    """Return a text's start, middle and end, `stretch` characters each; all of a short text.

    Its start alone may be a title page.
    """
    if len(text) <= 3 * stretch:
        return text
    middle = (len(text) - stretch) // 2
    return "\n".join((text[:stretch], text[middle : middle + stretch], text[-stretch:]))
