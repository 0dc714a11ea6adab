"""Put adapters into a model, and take them out: inject, merge, unload, delete, activate.

`Tuner` is the frozen model with its adapted layers. It walks the model once, when the first adapter is made; what it
knows of the layers afterwards serves loading, saving, switching and merging without another walk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import nn
from typing_extensions import override

from adapterkit.config.base import PeftConfig, check_is_config
from adapterkit.errors import StateError, of_choices
from adapterkit.given import check_name, names_of
from adapterkit.injection import encoders, replication
from adapterkit.injection.folding import Folding
from adapterkit.injection.gradients import Gradients
from adapterkit.injection.making import Maker
from adapterkit.injection.operations import Operations
from adapterkit.injection.schedules import Schedules
from adapterkit.nn import storage
from adapterkit.nn.copied import CopiedLayer, trainable_copy
from adapterkit.nn.layer import SLOTS, AdaptedLayer
from adapterkit.nn.module import check_is_module, set_training
from adapterkit.nn.parameters import ParameterAdapters
from adapterkit.nn.selection import Selection
from adapterkit.nn.view import LayerView
from adapterkit.targets.biases import Parts
from adapterkit.targets.matching import modules_of
from adapterkit.targets.parameters import base_of
from adapterkit.targets.tying import Tied


class Tuner(Operations, Folding):
    """A base model in place, with its adapted layers by name. ``model`` is the base model itself.

    Args:
        model: the base model.
        config: an adapter's, which is made and is the active one then; adapters may also be added later.
        adapter_name: its name.
        low_cpu_mem_usage: make it on the meta device, to be filled by loading.
    """

    def __init__(
        self,
        model: nn.Module,
        config: PeftConfig | None = None,
        adapter_name: str = "default",
        low_cpu_mem_usage: bool = False,
    ) -> None:
        check_is_module(model)
        super().__init__()
        self.model = model
        self.selection: Selection = Selection()
        self.configs: dict[str, PeftConfig] = {}
        self.schedules = Schedules(self)
        self.gradients = Gradients(self)
        self.adopted: list[str] = []
        """Adapters that were in the model already, and whose configs are not known."""

        self.layers: dict[str, AdaptedLayer] = {}
        self.copies: dict[str, CopiedLayer] = {}
        self.merge_errors: dict[str, float] = {}
        self._modules_by_name: dict[str, nn.Module] | None = None
        self._adopt()
        if config is not None:
            self.add(adapter_name, config, low_cpu_mem_usage=low_cpu_mem_usage)
            self.activate((adapter_name,))

    def _adopt(self) -> None:
        """Take over adapted layers that an earlier `inject_adapter_in_model` left in the model."""
        for name, module in self.names.items():
            if isinstance(module, AdaptedLayer):
                self.layers[name] = module
            elif isinstance(module, CopiedLayer):
                self.copies[name] = module
        names = [n for layer in self.layers.values() for n in layer.names()]
        names += [n for copied in self.copies.values() for n in copied.modules_to_save]
        self.adopted = list(dict.fromkeys(names))
        for module in [*self.layers.values(), *self.copies.values()]:
            held: Any = module.selection
            self.selection = held

    @property
    @override
    def _tuner(self) -> Tuner:
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    @property
    def names(self) -> dict[str, nn.Module]:
        """Every module of the model by name, adapted layers as leaves."""
        if self._modules_by_name is None:
            self._modules_by_name = modules_of(self.model)
        return self._modules_by_name

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's ``resize_token_embeddings``, with the names of its modules read anew.

        Raises:
            StateError: an embedding is adapted, or trained whole: what is trained of it has the old length.
        """
        for get in ("get_input_embeddings", "get_output_embeddings") if args or kwargs else ():
            module = getattr(self.model, get)()
            if isinstance(module, AdaptedLayer | CopiedLayer):
                target = next(name for name, other in self.names.items() if other is module)
                names = module.names() if isinstance(module, AdaptedLayer) else list(module.modules_to_save)
                raise StateError(
                    f"{target} belongs to the adapters {names}, at the length it has: resize the base model before "
                    "they are made, or after merge_and_unload"
                )
        resized: Any = self.model.resize_token_embeddings
        embeddings = resized(*args, **kwargs)
        self._modules_by_name = None
        return embeddings

    # -- adding and removing ------------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        config: PeftConfig,
        *,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        trainable: bool = True,
    ) -> PeftConfig:
        """Make adapter ``name``. Nothing is changed if a target is wrong, or a module cannot be copied.

        Args:
            name: the adapter's name.
            config: what to make; copied, not kept.
            autocast_adapter_dtype: keep the adapter in float32 where the base is in a half type.
            low_cpu_mem_usage: make the adapter on the meta device, to be filled by loading.
            trainable: whether it receives gradients, if the config does not say that it is for inference only.

        Returns:
            the config as it was honoured, with the targets that really matched.

        Raises:
            StateError: the name is taken.
            TargetError: a stated name matches nothing.
            CapabilityError: a target is of a kind the method cannot adapt.
        """
        check_name(name)
        check_is_config(config)
        if name in self.known:
            raise StateError(f"an adapter named {name!r} is there already")
        if "." in name:
            raise StateError(f"an adapter's name cannot contain a dot: {name!r}")
        if name in vars(nn.Module()):
            raise StateError(f"an adapter's name cannot be that of an attribute of every module: {name!r}")
        config = config.model_copy(deep=True)
        with replication.layers_for(self, config):
            maker = Maker(self.model, self.names, self.selection)
            config, parts = maker.parts(name, config, half=not autocast_adapter_dtype, meta=low_cpu_mem_usage)
            saved = maker.modules_to_save(config)
            copies = self._copies_of(saved, Tied(self.model, self.names, config).follow(saved))
        if not self.known:
            self._freeze()
        self._place(name, parts)
        for target, copy in copies.items():
            self._copied(target).modules_to_save._modules[name] = copy
        self.configs[name] = config
        if config.inference_mode or not trainable:
            self.set_trainable(name, False)
        return config

    def _place(self, name: str, parts: Parts) -> None:
        """Put the parts of adapter ``name`` at their layers, in the mode that those are in."""
        for slot, made in parts.items():
            for target, part in made.items():
                layer = self._layer(target, getattr(part, "layer", None))
                set_training(part, layer.training)
                layer.slot(slot)._modules[name] = part

    def _copies_of(self, saved: Sequence[str], following: Mapping[str, str]) -> dict[str, nn.Module]:
        """Copies of the modules that are trained whole, and of those whose weight follows one: by name, and not yet put
        in place."""
        copies = {target: trainable_copy(base_of(self.names[target])) for target in saved}
        for target, leader in following.items():
            copies[target] = trainable_copy(base_of(self.names[target]), copies[leader])
        return copies

    def _freeze(self) -> None:
        """No parameter of the base receives a gradient; without another walk."""
        for module in (self.model, *self.names.values()):
            for parameter in module._parameters.values():
                if parameter is not None:
                    parameter.requires_grad_(False)

    def _layer(self, target: str, view: LayerView | None = None) -> AdaptedLayer:
        if target not in self.layers:
            whole = view if view is not None and view.called else None
            self.layers[target] = layer = AdaptedLayer(self.names[target], self.selection, whole)
            self._put(target, layer)
        return self.layers[target]

    def _owner(self, target: str) -> nn.Module:
        """The module that holds another one: of an adapted one the frozen module in it."""
        parent = target.rpartition(".")[0]
        return base_of(self.names[parent]) if parent else self.model

    def _copied(self, target: str) -> CopiedLayer:
        if target not in self.copies:
            self.copies[target] = copied = CopiedLayer(self.names[target], self.selection)
            copied.train(self.names[target].training)
            self._put(target, copied)
            inside = f"{target}."
            self._modules_by_name = {n: m for n, m in self.names.items() if not n.startswith(inside)}
        return self.copies[target]

    def _put(self, target: str, module: nn.Module) -> None:
        inside = self._has_encoders  # of which the module may be one
        self._owner(target)._modules[target.rpartition(".")[2]] = module
        self.names[target] = module
        if inside:
            encoders.settle(self.model, self.names, target)

    @cached_property
    def _has_encoders(self) -> bool:
        return encoders.are_in((self.model, *map(base_of, self.names.values())))

    def drop(self, name: str, target: str) -> None:
        """Remove what an adapter has at one layer, which is put back as it was if nothing is left there."""
        layer = self.layers[target]
        layer.remove(name)
        self.gradients.forget(name)
        if not layer.names():
            self._put(target, self.layers.pop(target).base_layer)

    def drop_copy(self, name: str, target: str) -> None:
        """Remove an adapter's copy of a module, which is put back as it was if there is no other."""
        copied = self.copies[target]
        del copied.modules_to_save[name]
        if not copied.modules_to_save:
            self._put(target, self.copies.pop(target).original_module)
            self._modules_by_name = None

    def delete(self, name: str) -> None:
        """Remove an adapter everywhere; layers left without one are put back as they were.

        Raises:
            StateError: unknown, or merged.
        """
        self.require(name)
        self.require_unmerged(name, "deleting it")
        for target in self.adapted_by(name):
            self.drop(name, target)
        for target in [t for t, copied in self.copies.items() if name in copied.modules_to_save]:
            self.drop_copy(name, target)
        for layer in self.layers.values():
            layer.view.kept_rows = None  # which hold the adapters of all layers
        self.configs.pop(name, None)
        self.schedules.forget(name)
        self.gradients.forget(name)
        self.adopted = [n for n in self.adopted if n != name]
        self.selection.active = tuple(n for n in self.selection.active if n != name)

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def known(self) -> list[str]:
        """The names of all adapters, those that were in the model already first."""
        return [*self.adopted, *self.configs]

    def require(self, *names: str) -> None:
        """Raises:
        StateError: one of the names is unknown; lists the known ones.
        """
        for name in names:
            if name not in self.known:
                check_name(name)
                raise StateError(f"no adapter named {name!r}{of_choices(name, self.known, 'Adapters:')}")

    def require_config(self, names: Sequence[str], doing: str) -> None:
        """Raises:
        StateError: one of the names is unknown, or its config is.
        """
        self.require(*names)
        adopted = [name for name in names if name not in self.configs]
        if adopted:
            raise StateError(
                f"adapters: {adopted} were in the model before it was wrapped, and nothing is known of their configs, "
                f"which {doing} needs. Adapters with a config: {', '.join(self.configs) or 'none'}"
            )

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """The configs as they were honoured, by adapter name."""
        return self.configs

    @property
    def active_adapters(self) -> list[str]:
        """The adapters that the next forward uses, innermost first."""
        return list(self.selection.active)

    @property
    def active_adapter(self) -> str | list[str]:
        """The active adapter's name, or the list of names where there are several, or none."""
        active = self.active_adapters
        return active[0] if len(active) == 1 else active

    def activate(self, names: Sequence[str]) -> None:
        """Use these adapters from now on, the first one innermost. Nothing else about them changes.

        Raises:
            StateError: a name is unknown, or others are merged.
        """
        self.require(*names)
        merged = self.merged_adapters
        if merged and tuple(names) != merged:
            raise StateError(f"adapters {list(merged)} are merged: unmerge before activating {list(names)}")
        self.selection.active = tuple(names)

    def parts(self, name: str) -> Iterator[tuple[str, nn.Module]]:
        """The modules that belong to adapter ``name``, each with the name of the layer it is at."""
        for target, layer in self.layers.items():
            held: Any = layer._modules  # past the containers' own methods: switching is this loop
            for slot in SLOTS:
                part = held[slot]._modules.get(name) if slot in held else None
                if isinstance(part, ParameterAdapters):
                    yield from ((target, p) for p in part.adapters)
                elif part is not None:
                    yield target, part
        for target, copied in self.copies.items():
            if name in copied.modules_to_save:
                yield target, copied.modules_to_save[name]

    def adapted_by(self, name: str) -> list[str]:
        """The names of the layers at which adapter ``name`` has something."""
        return [t for t in dict.fromkeys(target for target, _ in self.parts(name)) if t in self.layers]

    def set_trainable(self, name: str, trainable: bool) -> None:
        """Whether the adapter's parameters receive gradients."""
        self.gradients.switch(name, trainable)

    def update_and_allocate(self, global_step: int, total_steps: int | None = None) -> None:
        """Advance the active adapters' schedules, under PEFT's name; see `Schedules.advance`."""
        self.schedules.advance(global_step, total_steps)

    # -- taking apart -------------------------------------------------------------------------------------------------

    def unload(self, *, merge: bool = False, names: Sequence[str] | None = None, **options: bool) -> nn.Module:
        """The plain base model again, with the adapters folded in or without them; options are `merge`'s. This tuner is
        empty afterwards. Adapters that are merged already are folded in, too, innermost."""
        chosen = self.selection.active if names is None else names_of(names, "adapter_names")
        if merge:
            chosen = tuple(dict.fromkeys([*self.merged_adapters, *chosen]))
            self.merge_for_good(chosen, **options)
        else:
            self.unmerge()
        for target, layer in self.layers.items():
            self._put(target, layer.base_layer)
        for target, copied in self.copies.items():
            self._put(target, copied._of(chosen) if merge else copied.original_module)
        self.layers, self.copies, self.configs, self.adopted = {}, {}, {}, []
        self.selection, self.schedules, self.gradients = Selection(), Schedules(self), Gradients(self)
        self._modules_by_name = None
        if merge:
            replication.keep(self.model)
            storage.leave_dense(self.model)
        else:
            replication.put_back(self.model)
        return self.model
