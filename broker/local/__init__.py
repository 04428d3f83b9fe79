"""What the processes of one host say to each other: messages, and the sockets that carry them."""
