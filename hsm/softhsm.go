package hsm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// SoftHSMConfEnv is the environment variable with the path of SoftHSM's configuration (softhsm2.conf(5)). SoftHSM reads
// the variable whenever the library is initialized. It is therefore enough to call os.Setenv before [Open] or [Init].
const SoftHSMConfEnv = "SOFTHSM2_CONF"

// softHSMPaths lists the paths of the SoftHSM module in distributions. The * is for the machine type.
var softHSMPaths = []string{
	"/usr/lib/softhsm/libsofthsm2.so",             // Debian, Ubuntu, Alpine
	"/usr/lib/*-linux-gnu/softhsm/libsofthsm2.so", // Debian, Ubuntu
	"/usr/lib64/pkcs11/libsofthsm2.so",            // Fedora
	"/usr/lib64/softhsm/libsofthsm2.so",
	"/usr/lib/pkcs11/libsofthsm2.so", // Arch
	"/usr/lib/libsofthsm2.so",
	"/usr/local/lib/softhsm/libsofthsm2.so",    // built from source, or Homebrew on Intel
	"/opt/homebrew/lib/softhsm/libsofthsm2.so", // Homebrew
	"/home/linuxbrew/.linuxbrew/lib/softhsm/libsofthsm2.so",
}

// FindSoftHSM returns the path of the SoftHSM module on this machine.
func FindSoftHSM() (string, error) {
	for _, pattern := range softHSMPaths {
		// The only error of Glob is a malformed pattern.
		found, _ := filepath.Glob(pattern)
		if len(found) > 0 {
			return found[0], nil
		}
	}
	return "", errors.New("the SoftHSM module is not installed: apt-get install softhsm2, dnf install softhsm, apk add softhsm or brew install softhsm")
}

// WriteSoftHSM creates a private SoftHSM in dir, with dir/softhsm2.conf and dir/tokens. It returns the path of the
// configuration. If dir already contains one, WriteSoftHSM writes the configuration again, and keeps the HSMs.
func WriteSoftHSM(dir string) (conf string, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("SoftHSM directory: %w", err)
	}
	// SoftHSM ends a line at # and a value at =, and has no quoting.
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
	// Replace the file by renaming, because another process may be reading it.
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
