"""The benchmark: host, overlay and Slim, round by round, judged by paired ratios."""
