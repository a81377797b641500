//! The program of its name; see the library.

fn main() -> std::process::ExitCode {
    evercred::storer_main()
}
