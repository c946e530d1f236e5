"""How a process is started in an unpacked image: as its configuration says, and as none but its own user."""

from __future__ import annotations

from pathlib import Path

from benchmarks.image import Image

CONFIG: dict[str, object] = {
    "User": "1000:1001",
    "Env": ["PATH=/opt/venv/bin:/usr/bin", "OPTIONS=a=b"],
    "Entrypoint": ["tini", "--"],
    "WorkingDir": "/runs",
}


def image(folder: Path, config: dict[str, object]) -> Image:
    (folder / "etc").mkdir()
    (folder / "etc" / "passwd").write_text("root:x:0:0:root:/top:/bin/sh\nsomeone:x:1000:1001::/home/someone:/bin/sh\n")
    return Image.of(folder, config)


def test_a_process_gets_what_the_image_says(tmp_path: Path) -> None:
    made = image(tmp_path, CONFIG)
    assert made.environment == {"HOME": "/home/someone", "PATH": "/opt/venv/bin:/usr/bin", "OPTIONS": "a=b"}
    assert made.owner == (1000, 1001)
    command = made.command(Path("files"), "ray", "start")
    assert command[:3] == ["chroot", "--userspec=1000:1001", "files"]
    assert command[3:] == ["/usr/bin/env", "--chdir=/runs", "tini", "--", "ray", "start"]


def test_an_image_that_says_nothing_is_run_as_root_from_the_top(tmp_path: Path) -> None:
    made = image(tmp_path, {"Env": None, "Entrypoint": None})
    assert (made.environment, made.owner, made.folder) == ({"HOME": "/top"}, (0, 0), "/")
    assert made.command(Path("files"), "ls")[3:] == ["/usr/bin/env", "--chdir=/", "ls"]
