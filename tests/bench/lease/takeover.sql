SELECT coord.lease_revoke('handed', 'bench');
SELECT coord.lease_acquire('handed', 'next', '1 day', max_wait => '60 s');
