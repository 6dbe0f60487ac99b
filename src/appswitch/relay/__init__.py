"""The relay: reads and writes the programs' point-to-point devices, answers DNS, refuses the rest."""
