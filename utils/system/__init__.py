"""What a run needs of the machine: devices, memory, processes, files, and how it ends."""
