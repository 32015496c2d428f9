"""What feed, app and verifier have to agree on."""

#: The n of items at which the app raises each time.
RAISES_ALWAYS = 666_666
