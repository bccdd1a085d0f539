"""What a run would do on other machines: its controller, driven by a virtual clock."""
