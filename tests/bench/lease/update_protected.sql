\set k random(1, 10000)
UPDATE protected SET n = n + 1, epoch = 1 WHERE id = :k;
