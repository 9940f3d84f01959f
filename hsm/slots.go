package hsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// Slot is a slot of a PKCS#11 library that contains a token. Its fields can be read without a login.
type Slot struct {
	// Number is the slot's number. It can change when the library restarts.
	Number uint
	// Label and Serial identify the token. Both are empty if the token is not initialized.
	Label, Serial       string
	Manufacturer, Model string
	Initialized         bool // whether the token is initialized
	UserPIN             bool // whether a user PIN is set
	Locked              bool // whether the user PIN is locked after too many wrong PINs
}

// Slots returns the slots that contain a token, in the library's order. It does not log in. ctx limits the wait for the
// library, but not the calls into it.
func Slots(ctx context.Context, modulePath string) ([]Slot, error) {
	return process.slots(ctx, modulePath)
}

func (r *registry) slots(ctx context.Context, modulePath string) (slots []Slot, err error) {
	m, err := r.acquire(modulePath)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.release(m)) }()
	if _, err := m.enter(ctx, 0); err != nil {
		return nil, fmt.Errorf("list slots: %w", err)
	}
	defer m.leave()
	numbers, err := m.lib.GetSlotList(true)
	if err != nil {
		return nil, fmt.Errorf("list slots: %w", err)
	}
	for _, n := range numbers {
		info, err := m.lib.GetTokenInfo(n)
		if err != nil {
			return nil, fmt.Errorf("read the token in slot %d: %w", n, err)
		}
		s := Slot{
			Number: n, Manufacturer: info.ManufacturerID, Model: info.Model,
			Initialized: info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0,
			UserPIN:     info.Flags&pkcs11.CKF_USER_PIN_INITIALIZED != 0,
			Locked:      info.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0,
		}
		if s.Initialized {
			s.Label, s.Serial = info.Label, info.SerialNumber
		}
		slots = append(slots, s)
	}
	return slots, nil
}
