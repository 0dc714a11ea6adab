"""Adapters in files: PEFT's layout, read strictly and written whole.

::

    <directory>/adapter_config.json         the config, key for key
    <directory>/adapter_model.safetensors   base_model.model.<module>.<tensor>, the adapter's name left out

Keys of prompt methods have no prefix, and the heads beside them ``base_model.``; a plain model that adapters were
injected into has no prefix at all. All three are read.
"""
