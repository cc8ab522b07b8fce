"""``ablate``: a network with layers deleted, reset, rewound, swapped or trained again: what they are needed for."""
