"""vLLM's plug-in point `vllm.general_plugins`: with it "kv_connector": "CairnConnector" is a name
that vLLM knows, without kv_connector_module_path."""

from __future__ import annotations


def register() -> None:
    """vLLM calls it in each of its processes, and may do so twice."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    try:
        KVConnectorFactory.register_connector("CairnConnector", "cairn.vllm", "CairnConnector")
    except ValueError:
        pass  # it is registered
