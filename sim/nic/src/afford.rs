//! Asking for memory before it is taken.

use std::io;

/// Fails if the system does not give so many bytes now, and gives them back if it does.
///
/// Collections of the standard library end the process when there is no memory. Whoever is about to make large ones
/// asks here first, so that the program gets an error, and nothing is made by halves.
///
/// # Errors
/// `OutOfMemory`.
pub(crate) fn afford(bytes: usize) -> io::Result<()> {
    let mut memory = Vec::<u8>::new();
    memory.try_reserve_exact(bytes).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    // A compiler may leave out an allocation that nobody looks at.
    std::hint::black_box(&mut memory);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::afford;

    #[test]
    fn what_no_machine_has_is_refused() {
        afford(1 << 16).unwrap();
        for bytes in [usize::MAX, isize::MAX as usize] {
            assert_eq!(afford(bytes).unwrap_err().kind(), std::io::ErrorKind::OutOfMemory);
        }
    }
}
