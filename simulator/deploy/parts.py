"""What a design needs on machines: nodes of an instance, labels, names of models."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hw_profiles.catalog import load
from hw_profiles.profile import HardwareProfile
from simulator.model.presets import load_model
from simulator.scenario import Deployment, Pool, ScenarioError

NODE_GPUS = 8  # of a server with accelerators on one board, or of PCIe cards [accelerators; assumed]
TRAY_GPUS = 4  # of a compute tray of a rack: GB200 and GB300 NVL72 have 18 of 4 [accelerators]
# As the feature discovery of NVIDIA's GPU operator names products; H100 as in public manifests, the others by the same
# rule (assumed): check with `kubectl get nodes -L nvidia.com/gpu.product`.
PRODUCTS = {
    "a100_sxm": "NVIDIA-A100-SXM4-80GB",
    "h100_sxm": "NVIDIA-H100-80GB-HBM3",
    "h200_sxm": "NVIDIA-H200",
    "h20": "NVIDIA-H20",
    "b200_sxm": "NVIDIA-B200",
    "b300_sxm": "NVIDIA-B300",
    "gb200": "NVIDIA-GB200",
    "gb300": "NVIDIA-GB300",
    "l40s": "NVIDIA-L40S",
}
RESOURCES = {
    "NVIDIA": "nvidia.com/gpu",
    "AMD": "amd.com/gpu",
    "Intel": "habana.ai/gaudi",
    "Huawei": "huawei.com/Ascend910",
    "Google": "google.com/tpu",
    "AWS": "aws.amazon.com/neuron",
}
OWN_LABEL = "moeplan/accelerator"


@dataclass(frozen=True)
class Role:
    """Instances of one role. nodes: that one instance spans, each with gpus_per_node of its accelerators."""

    name: str
    pool: Pool
    hardware: HardwareProfile

    @property
    def gpus_per_node(self) -> int:
        """The most that a node has and that divide the instance evenly."""
        size = self.pool.gpus_per_instance
        domain = self.hardware.scale_up_domain
        most = TRAY_GPUS if domain > NODE_GPUS else NODE_GPUS
        return max(n for n in range(1, min(size, most) + 1) if size % n == 0)

    @property
    def nodes(self) -> int:
        return self.pool.gpus_per_instance // self.gpus_per_node

    @property
    def resource(self) -> str:
        return RESOURCES.get(self.hardware.accelerator.vendor, "example.com/accelerator")

    @property
    def node_selector(self) -> dict[str, str]:
        product = PRODUCTS.get(self.hardware.name)
        return {"nvidia.com/gpu.product": product} if product else {OWN_LABEL: self.hardware.name}

    @property
    def sequences_per_rank(self) -> int:
        """Places for sequences of one attention rank. [sequences]"""
        return -(-self.pool.sequence_limit // self.pool.dp)


def roles(deployment: Deployment) -> tuple[Role, ...]:
    """Of each group of each pool. Raises ScenarioError for what launch files cannot say."""
    found = []
    for name, groups in deployment.pools.items():
        for i, group in enumerate(groups):
            if group.autoscale is not None:
                raise ScenarioError(f"{name}.autoscale has no place in launch files; leave it out, and scale by hand")
            label = name if len(groups) == 1 else f"{name}-{i + 1}"
            found.append(Role(label, group, load(group.gpu, group.stack)))
    return tuple(found)


def model_id(model: str) -> tuple[str, bool]:
    """Name of the checkpoint on Hugging Face, and whether it is known: else the preset's own name stands for it."""
    spec = load_model(model)
    found = re.search(r"model_configs/([\w.-]+?)--([\w.-]+?)_config\.json", spec.source)
    return (f"{found[1]}/{found[2]}", True) if found else (spec.name, False)
