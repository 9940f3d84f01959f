package agent

import (
	"fmt"

	"github.com/brevet-pki/brevet/enroll/tpm"
	"github.com/brevet-pki/brevet/pki"
)

// evidenceCommand prints the subject of the evidence that the machine enrolls with, in the form that brevet identity
// create --evidence accepts.
func evidenceCommand(args []string, s streams) error {
	set, _, err := parseFlags("evidence", args)
	if err != nil {
		return err
	}
	if set.Key.TPM == "" {
		return misusef("evidence shows which TPM the machine enrolls with: set key.tpm, such as %s", tpm.DefaultPath)
	}
	ek, err := tpm.New(set.Key.TPM).Endorsement()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(s.out, pki.EvidenceSubject{Kind: pki.EvidenceTPM, Hash: ek.Hash})
	return err
}
