package hsm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
)

// maxHSMLabel is the size of the label in CK_TOKEN_INFO, in bytes.
const maxHSMLabel = 32

// Init initializes a new HSM in a free slot of the module, with a PIN for the security officer and a PIN for the user.
// It returns the HSM's serial number. It never changes an HSM that is already initialized. If one has the same label,
// it returns [ErrExists]. SoftHSM always has a free slot. Hardware usually has none, and is initialized with the
// manufacturer's tools. ctx limits the wait for the library, but not the calls into it.
func Init(ctx context.Context, modulePath, label string, so, user PIN) (serial string, err error) {
	return process.initialize(ctx, modulePath, label, so, user)
}

func (r *registry) initialize(ctx context.Context, modulePath, label string, so, user PIN) (serial string, err error) {
	if label == "" || len(label) > maxHSMLabel || strings.TrimSpace(label) != label {
		return "", fmt.Errorf("HSM label %q: use 1 to %d bytes, with no space at either end", label, maxHSMLabel)
	}
	m, err := r.acquire(modulePath)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, r.release(m)) }()
	if _, err := m.enter(ctx, 0); err != nil {
		return "", fmt.Errorf("initialize HSM: %w", err)
	}
	defer m.leave()
	serial, err = initSlot(m.lib, label, so, user)
	if err != nil {
		return "", fmt.Errorf("initialize HSM %q: %w", label, err)
	}
	return serial, nil
}

// initSlot initializes the HSM while the caller is inside the library.
func initSlot(lib cryptoki, label string, so, user PIN) (serial string, err error) {
	slot, err := freeSlot(lib, label, so, user)
	if err != nil {
		return "", err
	}
	if err := lib.InitToken(slot, so.reveal(), label); err != nil {
		return "", err
	}
	s, err := lib.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return "", fmt.Errorf("open session: %w", err)
	}
	defer func() { err = errors.Join(err, lib.CloseSession(s)) }()
	if err := lib.Login(s, pkcs11.CKU_SO, so.reveal()); err != nil {
		return "", fmt.Errorf("log in as security officer: %w", err)
	}
	// The security officer must log out, because no user can log in at the same time.
	defer func() { err = errors.Join(err, lib.Logout(s)) }()
	if err := lib.InitPIN(s, user.reveal()); err != nil {
		return "", fmt.Errorf("set the user PIN: %w", err)
	}
	info, err := lib.GetTokenInfo(slot)
	if err != nil {
		return "", fmt.Errorf("read the new HSM: %w", err)
	}
	return info.SerialNumber, nil
}

// freeSlot returns a slot whose HSM is not initialized. It checks that no HSM has the label, and that the HSM accepts
// PINs of these lengths.
func freeSlot(lib cryptoki, label string, pins ...PIN) (uint, error) {
	slots, err := lib.GetSlotList(true)
	if err != nil {
		return 0, fmt.Errorf("list slots: %w", err)
	}
	var free []uint
	for _, slot := range slots {
		info, err := lib.GetTokenInfo(slot)
		if err != nil {
			return 0, fmt.Errorf("read the HSM in slot %d: %w", slot, err)
		}
		if info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 {
			if info.Label == label {
				return 0, fmt.Errorf("%w: an HSM with this label, serial %q", ErrExists, info.SerialNumber)
			}
			continue
		}
		wrong := func(p PIN) bool {
			n := uint(len(p.reveal()))
			return n < max(info.MinPinLen, 1) || info.MaxPinLen > 0 && n > info.MaxPinLen
		}
		if slices.ContainsFunc(pins, wrong) {
			return 0, fmt.Errorf("a PIN has the wrong length: this HSM accepts %d to %d bytes", info.MinPinLen, info.MaxPinLen)
		}
		free = append(free, slot)
	}
	if len(free) == 0 {
		return 0, errors.New("the module has no free slot: initialize the HSM with its maker's tools")
	}
	return free[0], nil
}
