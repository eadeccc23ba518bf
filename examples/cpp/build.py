"""Compile swap.cpp against the installed torch: `python build.py OUTPUT`."""

import subprocess
import sys
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

source, folders = Path(__file__).with_name("swap.cpp"), library_paths()
command = ["g++", "-std=c++20", "-O1", str(source), "-o", sys.argv[1]]
command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
command += [f"-I{folder}" for folder in include_paths()]
command += [part for folder in folders for part in (f"-L{folder}", f"-Wl,-rpath,{folder}")]
subprocess.run([*command, "-ltorch", "-ltorch_cpu", "-lc10"], check=True)
