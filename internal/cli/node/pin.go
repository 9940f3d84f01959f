package node

import (
	"os"

	"github.com/brevet-pki/brevet/hsm"
)

// ReadPIN reads the PIN from a file, from a systemd credential, or from the terminal.
func ReadPIN(file string) (hsm.PIN, error) {
	switch {
	case file != "":
		return hsm.ReadPINFile(file)
	case os.Getenv("CREDENTIALS_DIRECTORY") != "":
		return hsm.ReadPINCredential("pin")
	default:
		return hsm.PromptPIN(os.Stdin, "PIN of the HSM: ")
	}
}
