fn main() -> std::process::ExitCode {
    evercred::evercred_main()
}
