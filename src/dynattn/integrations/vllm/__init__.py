"""vLLM on CPUs attends by a method of dynattn: ``DYNATTN_VLLM=nm-2-4 vllm serve …``.

vLLM finds :func:`dynattn.integrations.vllm.plugin.register` by the entry point ``vllm.general_plugins``, and calls it
in each of its processes. It does nothing where ``DYNATTN_VLLM`` is not set. Nothing here is imported with dynattn.
"""
