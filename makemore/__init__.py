"""The language-model contract and the small families: bigram, n-gram, MLP, CNN, RNN, LSTM, GRU."""
