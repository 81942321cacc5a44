//! The `anyverbs` command as its users meet it: started as a process, judged by what it prints and leaves behind.

mod failures;
mod measure;
mod support;
