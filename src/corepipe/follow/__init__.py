"""Plans that follow the chip: what a stream sees, what that says of the cores, and when to change the plan."""

from corepipe.follow.follower import Change, Follower

__all__ = ["Change", "Follower"]
