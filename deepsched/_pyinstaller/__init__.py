"""Where PyInstaller finds our hook: it asks by the entry point `pyinstaller40`."""

from pathlib import Path


def hook_dirs() -> list[str]:
    """The folders of hooks."""
    return [str(Path(__file__).parent)]
