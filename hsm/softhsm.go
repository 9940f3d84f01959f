package hsm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// SoftHSMConfEnv is the environment variable that tells SoftHSM where its configuration is
// (softhsm2.conf(5)). SoftHSM reads it each time the library is initialized, from the
// environment of the process: os.Setenv before [Open] or [Init] is enough.
const SoftHSMConfEnv = "SOFTHSM2_CONF"

// softHSMPaths lists where distributions install the SoftHSM module; * stands for the machine.
var softHSMPaths = []string{
	"/usr/lib/softhsm/libsofthsm2.so",             // Debian, Ubuntu, Alpine
	"/usr/lib/*-linux-gnu/softhsm/libsofthsm2.so", // Debian, Ubuntu
	"/usr/lib64/pkcs11/libsofthsm2.so",            // Fedora
	"/usr/lib64/softhsm/libsofthsm2.so",
	"/usr/lib/pkcs11/libsofthsm2.so", // Arch
	"/usr/lib/libsofthsm2.so",
	"/usr/local/lib/softhsm/libsofthsm2.so",    // from source, and Homebrew on Intel
	"/opt/homebrew/lib/softhsm/libsofthsm2.so", // Homebrew
	"/home/linuxbrew/.linuxbrew/lib/softhsm/libsofthsm2.so",
}

// FindSoftHSM returns the path of the SoftHSM module on this machine.
func FindSoftHSM() (string, error) {
	for _, pattern := range softHSMPaths {
		// The patterns are well-formed, which is the only error that Glob knows.
		found, _ := filepath.Glob(pattern)
		if len(found) > 0 {
			return found[0], nil
		}
	}
	return "", errors.New("the SoftHSM module is not installed: apt-get install softhsm2, dnf install softhsm, apk add softhsm or brew install softhsm")
}

// WriteSoftHSM makes dir the home of a private SoftHSM, with dir/softhsm2.conf and
// dir/tokens, and returns the path of the configuration. What is there already stays: HSMs
// are kept, the configuration is written again as a whole.
func WriteSoftHSM(dir string) (conf string, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("SoftHSM directory: %w", err)
	}
	// SoftHSM cuts a line at # and a value at =, and knows no quoting.
	if strings.ContainsAny(dir, "#=\r\n") {
		return "", fmt.Errorf("SoftHSM directory %q: choose one without '#', '=' and line breaks, which its configuration cannot express", dir)
	}
	tokens := filepath.Join(dir, "tokens")
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		return "", fmt.Errorf("SoftHSM directory: %w", err)
	}
	conf = filepath.Join(dir, "softhsm2.conf")
	text := "directories.tokendir = " + tokens + "\n" +
		"objectstore.backend = file\n" +
		"log.level = ERROR\n"
	// By rename, because another process may be reading it.
	f, err := os.CreateTemp(dir, ".softhsm2.conf-*") // mode 0600
	if err != nil {
		return "", fmt.Errorf("SoftHSM configuration: %w", err)
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), conf)
	}
	if err != nil {
		return "", fmt.Errorf("SoftHSM configuration: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return conf, nil
}
