"""What adapters can be bound to in a captured program."""

from torch.fx import GraphModule

from lyc_fx.binding.twins import twins
from lyc_fx.graph.places import Known
from lyc_fx.graph.program import aliases, facts, get_tensor, weights
from lyc_fx.graph.targets import described, known_as, stored, targets


def bindable(gm: GraphModule) -> Known:
    """Describe all weights of a program, by the names that adapters use for them."""
    found, kept = targets(gm), stored(gm)
    read = {name: described(name, nodes[0], found) for name, nodes in found.items()}
    fused = twins({name: get_tensor(gm, name) for name in kept})
    return Known(kept | read, known_as(gm), fused, facts(gm).on_disk)


def ties(gm: GraphModule) -> list[list[str]]:
    """The names of each tensor that the program reads under several."""
    read, same = {str(node.target) for node in weights(gm)}, facts(gm).aliases
    groups = ([name for name in group if name in read and name not in same] for group in aliases(gm).values())
    return [sorted(group) for group in groups if len(group) > 1]
