"""From a parent to a smaller child: importance, pruning."""
