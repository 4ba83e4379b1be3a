"""PEFT methods. LoRSA is ours; everything PEFT has comes from PEFT."""
