"""What a run or a sweep will take, before anything runs: parameters, memory, time, disk."""
