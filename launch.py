"""Start Easel: `python3 launch.py`. `--help` lists the flags and the commands.

Standard library only until the environment stands. Whatever Python reads this first must be able to tell what it lacks,
so the rest of the house is imported inside `main`, after the version has been looked at.
"""
import os
import sys

OLDEST, NEWEST = (3, 11), (3, 14)


def wrong_python(version):
    """A sentence when this Python (its version_info) cannot run Easel, else None."""
    if OLDEST <= tuple(version[:2]) <= NEWEST:
        return None
    words = "Easel needs Python {}.{} to {}.{} and this is {}.{}; install one of them and start with it, for example: python{}.{} launch.py"
    return words.format(*(OLDEST + NEWEST + tuple(version[:2]) + NEWEST))


def main(argv):
    """Run the command in argv (without the program's name). Returns the exit code; does not return where the process is replaced."""
    sentence = wrong_python(sys.version_info)
    if sentence:
        sys.stderr.write(sentence + "\n")
        return 1

    # After the look at the version: an older Python could not even parse these.
    from pathlib import Path

    from modules.core import environment
    from modules.core.errors import WebUIError
    from modules.core.flags import read
    from modules.core.paths import Paths

    root = Path(__file__).resolve().parent
    order = read(argv)
    try:
        paths = Paths.of(root, *order.flags.folders)
        if not environment.inside(root):
            python = environment.prepare(root, paths.data / "logs" / "install.log", for_tests=order.command == "test",
                                         torch_index=order.flags.torch_index)
            words = list(argv)                              # no [*argv]: Python 2 should reach the sentence above too
            words.insert(0, str(root / "launch.py"))
            return environment.enter(python, words)
        return run(order, paths)
    except WebUIError as error:
        sys.stderr.write(str(error) + "\n")
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. Start again to go on from here.\n")
        return 130


def run(order, paths):
    """Inside the environment: serve, run the tests, or hand the command to the command line. Imports late, for the reason above."""
    from modules.core import environment

    words = list(order.rest)
    if order.command == "test":
        import pytest
        os.chdir(str(paths.root))
        if any(os.path.exists(word.split("::")[0]) for word in words):
            return int(pytest.main(words))
        timed = [os.path.join("tests", "test_start.py")]    # counts seconds, so nothing runs beside it
        beside = ["tests", "--ignore", timed[0], "-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadfile"]     # each takes one core
        code = int(pytest.main(timed + words))
        if code not in (0, 5):                              # 5: none of these were asked for
            return code
        others = int(pytest.main(beside + words))
        return code if others == 5 else others
    environment.settle(paths.data)
    if order.command:
        from modules.cli import main as command_line
        words.insert(0, order.command)
        return command_line(words, paths) or 0
    from webui.server import serve
    return serve(order.flags, paths)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
