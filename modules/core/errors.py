"""Everything we tell the user when something cannot be done.

    WebUIError                 one sentence: what failed, on which thing, what to do
     ├── RequestError          a field of the request cannot be used; knows which field
     │    └── PromptError      a prompt that cannot be read (too long, too deep, a lone surrogate)
     ├── NotFoundError         a name (sampler, checkpoint, job ...) that is not in its catalogue
     ├── CheckpointError       a model file that cannot be used
     │    └── UnsafeFileError  a pickle that asks for more than tensors
     ├── ScheduleError         a ladder of noise levels that cannot be built
     ├── ImageMetaError        a picture whose text or pixels cannot be read
     ├── PathError             a name that would leave its folder, or that some system cannot store
     ├── SettingsError         an option that does not exist or a value that does not fit
     ├── SaveError             a picture or file that could not be written; DiskFullError when there is no room
     ├── NanError              the model gave values that are no numbers
     ├── OutOfMemoryError      the device has no memory left
     ├── ReplayError           a picture that carries too little to be made again
     ├── BusyError             the queue is full, or another Easel holds the data folder
     └── Cancelled             not a failure: the user stopped the job
"""


class WebUIError(Exception):
    """Base of what we tell the user. str(error) is one sentence: what failed, on which thing, what to do.

    code: a short stable word for machines; status: the HTTP status that fits.
    """

    code = "error"
    status = 400


class RequestError(WebUIError):
    """A field of the request cannot be used. `field` is the Request field (or API field) it is about."""

    code = "bad_request"
    status = 422

    def __init__(self, sentence: str, field: str = "") -> None:
        super().__init__(sentence)
        self.field = field


class PromptError(RequestError):
    code = "bad_prompt"


class NotFoundError(WebUIError):
    """A name that is not in its catalogue. The sentence offers the nearest ones."""

    code = "not_found"
    status = 404


class CheckpointError(WebUIError):
    code = "bad_checkpoint"
    status = 422


class UnsafeFileError(CheckpointError):
    code = "unsafe_file"


class ScheduleError(WebUIError):
    code = "bad_schedule"
    status = 422


class ImageMetaError(WebUIError):
    code = "bad_image"
    status = 422


class PathError(WebUIError):
    code = "bad_path"
    status = 422


class SettingsError(WebUIError):
    code = "bad_setting"
    status = 422


class SaveError(WebUIError):
    code = "save_failed"
    status = 500


class DiskFullError(SaveError):
    code = "disk_full"
    status = 507


class NanError(WebUIError):
    code = "nan"
    status = 500


class OutOfMemoryError(WebUIError):
    code = "out_of_memory"
    status = 507


class ReplayError(WebUIError):
    code = "cannot_replay"
    status = 422


class BusyError(WebUIError):
    code = "busy"
    status = 503


class Cancelled(WebUIError):
    """Raised inside a job to leave it; carries nothing to repair."""

    code = "cancelled"
    status = 409
