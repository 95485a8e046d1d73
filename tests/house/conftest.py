import pytest


@pytest.fixture
def plant(tmp_path):
    """Write one file into an otherwise empty tree, and return the tree's root."""

    def write(file, text):
        path = tmp_path / file
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
        return tmp_path

    return write
