"""Configuration: one reader, one frozen `Settings`; below this package nobody reads the environment."""

from fermi.config.folders import data_folder
from fermi.config.reader import load_settings
from fermi.config.settings import (
    CacheSettings,
    CliSettings,
    EngineSettings,
    FrontDoor,
    GenerationSettings,
    GrpcSettings,
    LogSettings,
    ModelSettings,
    OpenAISettings,
    Origin,
    SettingInfo,
    Settings,
    known_settings,
)
from fermi.config.values import Address, Thinking, parse_address, parse_memory, parse_thinking, split_words

__all__ = [
    "Address",
    "CacheSettings",
    "CliSettings",
    "EngineSettings",
    "FrontDoor",
    "GenerationSettings",
    "GrpcSettings",
    "LogSettings",
    "ModelSettings",
    "OpenAISettings",
    "Origin",
    "SettingInfo",
    "Settings",
    "Thinking",
    "data_folder",
    "known_settings",
    "load_settings",
    "parse_address",
    "parse_memory",
    "parse_thinking",
    "split_words",
]
