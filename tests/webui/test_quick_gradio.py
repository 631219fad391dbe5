"""Gradio is imported without writing into its own package."""
import subprocess
import sys

CODE = """
import sys
from webui import quick_gradio
{prepare}
import pathlib
written = []
plain = pathlib.Path.read_text
def read(path, *words, **more):
    written.append(path.suffix)
    return plain(path, *words, **more)
pathlib.Path.read_text = read
import gradio
print(written.count(".pyi"), gradio.Textbox.__name__, any("quick_gradio" in type(finder).__module__ for finder in sys.meta_path))
"""


def told(prepare):
    done = subprocess.run([sys.executable, "-c", CODE.format(prepare=prepare)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_no_stub_is_written_and_the_import_system_is_left_as_it_was():
    assert told("quick_gradio.prepare(); quick_gradio.prepare()") == ["0", "Textbox", "False"]


def test_without_it_gradio_goes_through_its_stubs():
    """Else the module above has nothing left to do and should go."""
    assert int(told("")[0]) > 10
