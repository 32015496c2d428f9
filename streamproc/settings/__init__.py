"""Settings: one typed object, gathered from six places, with the place of each value kept."""

from streamproc.settings.loading import Loaded, load, load_settings
from streamproc.settings.model import ErrorHandling, SampleData, Secret, Settings

__all__ = [
    "ErrorHandling",
    "Loaded",
    "SampleData",
    "Secret",
    "Settings",
    "load",
    "load_settings",
]
