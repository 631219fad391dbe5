"""What may stand behind `launch.py`: flags under the names that A1111's users know, and commands."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

COMMANDS = (
    ("test", "install what the tests need too, and run them; pytest's own arguments may follow, and --nightly"),
    ("txt2img", "make a picture: txt2img \"a red boat\" --steps 20 --seed 1 -o out.png"),
    ("img2img", "make a picture from a picture: img2img photo.jpg \"in oil\" --denoising-strength 0.5 [--mask mask.png] -o out.png"),
    ("png-info", "print the text and the record inside a picture"),
    ("replay", "make a picture again and say whether it is identical (exit code 0), different (1), or cannot be made (2)"),
    ("models", "list the models that were found; models info, convert, prune, merge, get: describe, change and fetch them"),
    ("import-a1111", "take over settings, defaults, styles and model folders of A1111's web UI: import-a1111 ~/stable-diffusion-webui"),
    ("jobs", "list the newest jobs and their states"),
    ("resume", "take an unfinished job up at its first missing picture"),
    ("train", "train a model or a VAE as a recipe says, or go on with it: train my.toml"),
    ("demo-report", "measure how well the embedded model, or another, follows words about storybook scenes"),
    ("vae-bench", "compare VAEs as a table, CSV and pictures: vae-bench --vae A --vae B [--image photo.png | --latent z.safetensors]"),
    ("samplers", "list the samplers; with --grid draw one prompt with all of them: a picture and a table of times and distances"),
    ("schedule", "show the noise levels of schedules as numbers and as curves: schedule --plot levels.png --scheduler Karras --steps 20"),
)
FOLDERS = (
    ("--data-dir", "everything Easel writes: outputs, settings, database, caches (default: data, beside launch.py)"),
    ("--models-dir", "the folder with Stable-diffusion, VAE, Lora, embeddings in it (default: models, beside launch.py)"),
    ("--ckpt-dir", "one more folder with checkpoints"),
    ("--vae-dir", "one more folder with VAEs"),
    ("--lora-dir", "one more folder with LoRAs"),
    ("--embeddings-dir", "the folder with textual inversion embeddings"),
)
LEVELS = ("debug", "info", "warning", "error")
PAGE_PORT, API_PORT = 7860, 7861                            # where A1111 answers, with and without a page

Users = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of one start. port: None = not asked for. users: (name, password) pairs; they open everything behind the door."""

    port: int | None = None
    listen: bool = False
    server_name: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    subpath: str = ""                                       # "" or "/prefix", without a slash at the end
    api: bool = False
    nowebui: bool = False
    api_log: bool = False
    users: Users = field(default=(), repr=False)
    cors_allow_origins: tuple[str, ...] = ()
    cors_allow_origins_regex: str | None = None
    tls_keyfile: str | None = None
    tls_certfile: str | None = None
    timeout_keep_alive: int = 30                            # seconds
    autolaunch: bool = False
    no_browser: bool = False
    data_dir: str | None = None
    models_dir: str | None = None
    ckpt_dir: str | None = None
    vae_dir: str | None = None
    lora_dir: str | None = None
    embeddings_dir: str | None = None
    torch_index: str | None = None
    deterministic: bool = False
    disable_extensions: str = "none"                        # none, extra (only built-in ones are loaded), all
    log_level: str = "warning"

    @property
    def folders(self) -> tuple[str | None, ...]:
        """The six folders in the order of FOLDERS, as Paths.of takes them."""
        return (self.data_dir, self.models_dir, self.ckpt_dir, self.vae_dir, self.lora_dir, self.embeddings_dir)


@dataclass(frozen=True)
class Order:
    """What was asked: the flags, a command ("" = serve), and the rest of the line, which belongs to the command."""

    flags: Flags
    command: str = ""
    rest: tuple[str, ...] = ()


def parser() -> argparse.ArgumentParser:
    """The parser of the flags that stand before a command. Leaves the process with code 2 and a sentence at a bad flag."""
    commands = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS)
    made = argparse.ArgumentParser(
        prog="launch.py", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python3 launch.py [flags] [command [its arguments]]",
        description="Easel: a Stable Diffusion web UI. Without a command it serves the page.",
        epilog=f"commands:\n{commands}\n\n`launch.py COMMAND --help` lists its arguments; the folder flags may follow it too.",
    )
    _address(made.add_argument_group("address"))
    _access(made.add_argument_group("API and access"))
    folders = made.add_argument_group("folders")
    for name, text in FOLDERS:
        folders.add_argument(name, metavar="DIR", help=text)
    rest = made.add_argument_group("the rest")
    rest.add_argument("--torch-index", metavar="URL", help="take torch from this package index, not from the one chosen here")
    rest.add_argument("--deterministic", action="store_true", help="one picture at a time, bit-identical on the same machine")
    rest.add_argument("--disable-extra-extensions", dest="disable_extensions", action="store_const", const="extra", default="none",
                      help="load only the extensions that come with Easel")
    rest.add_argument("--disable-all-extensions", dest="disable_extensions", action="store_const", const="all", help="load no extension")
    rest.add_argument("--log-level", choices=LEVELS, default="warning", help="what to print (default: warning)")
    return made


def _address(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--port", type=_port, help=f"port (default: {PAGE_PORT}, or {API_PORT} with --nowebui, or the next free one)")
    group.add_argument("--listen", action="store_true",
                       help="answer on every network interface; without --api-auth an address with a fresh token is printed")
    group.add_argument("--server-name", metavar="HOST", help="answer on this address or host name")
    group.add_argument("--allowed-hosts", type=_words, default=(), metavar="A,B",
                       help="further host names a browser may use, as behind a proxy")
    group.add_argument("--subpath", type=_subpath, default="", metavar="PATH", help="path prefix behind a reverse proxy")
    group.add_argument("--tls-keyfile", metavar="FILE", help="key for HTTPS, with --tls-certfile")
    group.add_argument("--tls-certfile", metavar="FILE", help="certificate for HTTPS, with --tls-keyfile")
    group.add_argument("--timeout-keep-alive", type=int, default=30, metavar="SECONDS",
                       help="how long an idle connection is kept (default: 30)")
    group.add_argument("--autolaunch", action="store_true", help="open the browser even where none is expected")
    group.add_argument("--no-browser", action="store_true", help="do not open the browser")


def _access(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--api", action="store_true", help="serve /sdapi/v1 beside the page")
    group.add_argument("--nowebui", action="store_true", help="serve /sdapi/v1 alone, without the page")
    group.add_argument("--api-log", action="store_true", help="print a line for each request to the API")
    group.add_argument("--api-auth", type=_users, default=(), metavar="U:P[,U:P]",
                       help="user names and passwords; from then on nothing opens without")
    group.add_argument("--api-auth-file", metavar="FILE", help="the same from a file, separated by commas or lines")
    group.add_argument("--gradio-auth", type=_users, default=(), metavar="U:P[,U:P]",
                       help="the same as --api-auth: one door stands before all")
    group.add_argument("--gradio-auth-path", metavar="FILE", help="the same as --api-auth-file")
    group.add_argument("--cors-allow-origins", type=_words, default=(), metavar="A,B", help="web origins whose pages may call the API")
    group.add_argument("--cors-allow-origins-regex", metavar="REGEX", help="the same as a pattern for the whole origin")


def read(argv: Sequence[str]) -> Order:
    """The order in a command line (without the program's name). A bad one ends the process with code 2 and says why."""
    made = parser()
    at = _command_at(made, argv)
    before, after = list(argv[:at]), list(argv[at:])
    command, *rest = after or [""]
    if command and command != "test":
        folders, rest = _folders_of(made, rest)
        before += folders
    found = vars(made.parse_args(before))
    users = (*found.pop("api_auth"), *found.pop("gradio_auth"))
    for name in ("api_auth_file", "gradio_auth_path"):
        path = found.pop(name)
        users += _users_in(made, path) if path else ()
    if bool(found["tls_keyfile"]) != bool(found["tls_certfile"]):
        made.error("--tls-keyfile and --tls-certfile belong together; give both.")
    known = {entry.name for entry in fields(Flags)}
    values = {name: value for name, value in found.items() if name in known}
    return Order(Flags(**{**values, "users": users, "api": values["api"] or values["nowebui"]}), command, tuple(rest))


def _command_at(made: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Where the command stands: the first word that is neither a flag nor the value of one. len(argv) when there is none."""
    takes_value = {name for action in made._actions if action.nargs is None and action.option_strings for name in action.option_strings}
    skip = False
    for index, word in enumerate(argv):
        if skip:
            skip = False
        elif word in takes_value:
            skip = True
        elif not word.startswith("-"):
            return index
    return len(argv)


def _folders_of(made: argparse.ArgumentParser, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The folder flags among a command's arguments, and what is left of them."""
    names = {name for name, _ in FOLDERS}
    folders: list[str] = []
    rest: list[str] = []
    words = list(words)
    while words:
        word = words.pop(0)
        if word == "--":
            return folders, [*rest, word, *words]
        if word.split("=")[0] not in names:
            rest.append(word)
        elif "=" in word:
            folders.append(word)
        elif words:
            folders += [word, words.pop(0)]
        else:
            made.error(f"{word} needs a folder behind it.")
    return folders, rest


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give a number from 1 to 65535")
    return int(text)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip().rstrip("/") for word in text.split(",") if word.strip())


def _subpath(text: str) -> str:
    return "/" + text.strip("/") if text.strip("/") else ""


def _users(text: str) -> Users:
    users = []
    for item in text.replace("\n", ",").split(","):
        if item.strip():
            name, colon, password = item.strip().partition(":")
            if not colon or ":" in password or not name or not password:    # the item itself is a secret: it is not repeated
                raise argparse.ArgumentTypeError("each entry must be one name, one colon and one password")
            users.append((name, password))
    return tuple(users)


def _users_in(made: argparse.ArgumentParser, path: str) -> Users:
    try:
        return _users(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, argparse.ArgumentTypeError) as error:
        made.error(f"The users in {path} cannot be read: {getattr(error, 'strerror', None) or error}.")
