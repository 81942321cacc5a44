//! Congestion control: its laws, and queue pairs that obey them.

mod dcqcn;
