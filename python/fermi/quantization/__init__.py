"""Weight quantization: packs a checkpoint's matrices to int8 or int4, into another folder or while it is loaded."""

from fermi.quantization.cache import quantized_once
from fermi.quantization.calibration import WINDOW, pack_calibrated
from fermi.quantization.fidelity import Fidelity
from fermi.quantization.folder import Quantized, quantize_folder
from fermi.quantization.packer import Packer, progress_bar
from fermi.quantization.recipe import GROUPS, Choice, Packing, Recipe
from fermi.quantization.survey import Survey

__all__ = [
    "GROUPS",
    "WINDOW",
    "Choice",
    "Fidelity",
    "Packer",
    "Packing",
    "Quantized",
    "Recipe",
    "Survey",
    "pack_calibrated",
    "progress_bar",
    "quantize_folder",
    "quantized_once",
]
