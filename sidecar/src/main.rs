//! The binary `starling`: reads the command line, runs one command, exits with its code.

fn main() {}
