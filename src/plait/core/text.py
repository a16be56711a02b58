"""What a text is made of."""


def is_unicode(text: str) -> bool:
    """Say whether a text can be written as UTF-8; half of a surrogate pair, which escapes in JSON
    and odd file names bring, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
