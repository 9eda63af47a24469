"""Promises of the benchmarks that no measurement shows."""

import subprocess
import sys

_ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"mlflow", "orjson", "pyarrow", "pydantic", "ray", "safetensors", "xxhash", "yaml"}:
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import benchmarks.gpu_train
import torch
from gpt_core.presets import ModelShape
compute = benchmarks.gpu_train.Compute(torch.device("cpu"), torch.float32, "fast")
learner = benchmarks.gpu_train.Learner(ModelShape(1, 2, 16, 8, 50), benchmarks.gpu_train.Recipe(), 0, compute)
print(learner.initialise().take_step(benchmarks.gpu_train.np.zeros((2, 3, 9), int), 1.0).loss)
"""


def test_the_gpu_benchmark_needs_torch_and_numpy_alone():
    done = subprocess.run([sys.executable, "-c", _ALONE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 3.8 < float(done.stdout) < 4.0  # ln 50 = 3.91
