"""The settings (design section 9): a TOML file < the environment `MQTT_GATEWAY__SECTION__KEY` < the command line.

Every mistake of the operator's is a `SettingsError` that names the key, the problem and the cure; all mistakes are told at once.
"""

from gateway.settings.checks import doubts
from gateway.settings.first_run import FirstRun, make_data_dir, prepare
from gateway.settings.load import load
from gateway.settings.model import (
    Account,
    Auth,
    Backend,
    Bridge,
    Embedded,
    Gateway,
    Http,
    Limits,
    Mqtt,
    Naming,
    Offline,
    Settings,
    Store,
)
from gateway.settings.values import Problem, SettingsError, address

__all__ = [
    "Account",
    "Auth",
    "Backend",
    "Bridge",
    "Embedded",
    "FirstRun",
    "Gateway",
    "Http",
    "Limits",
    "Mqtt",
    "Naming",
    "Offline",
    "Problem",
    "Settings",
    "SettingsError",
    "Store",
    "address",
    "doubts",
    "load",
    "make_data_dir",
    "prepare",
]
