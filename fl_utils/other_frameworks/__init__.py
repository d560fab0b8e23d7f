"""One model under several frameworks (Wang and Guo 2019, section 4.2.3): the network, its trainings, and Keras."""
