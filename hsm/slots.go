package hsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// Slot is a slot of a PKCS#11 library that has a token in it. What a token says about itself needs no login.
type Slot struct {
	// Number is the slot's number. It can change when the library restarts.
	Number uint
	// Label and Serial name the token. Both are empty if it is not initialized.
	Label, Serial       string
	Manufacturer, Model string
	Initialized         bool // whether the token is initialized
	UserPIN             bool // whether a user PIN is set
	Locked              bool // whether the user PIN is locked after wrong tries
}

// Slots lists the slots of a library that have a token in them, in the library's order. It logs in to none. ctx bounds the
// wait for the library, not the calls into it.
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
