"""Run it: train, evaluate, look inside, time. What imports torch is here."""
